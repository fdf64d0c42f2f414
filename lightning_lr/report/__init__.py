"""Report: the story of runs in a terminal, as JSON, or as one page of HTML.

It reads nothing itself, and knows neither torch nor Lightning.
"""
