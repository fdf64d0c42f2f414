"""Statistics: numbers in, numbers out.

Trends of noisy series, their level and noise, the middle of a window, the difference of two lists of losses, fewer
points for a picture.
What is here knows no rate, no weight, no torch and no Lightning; it keeps nothing between calls.
"""
