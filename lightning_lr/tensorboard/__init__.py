"""TensorBoard's tab "Learning rates": what it serves, and the page.

It imports neither torch nor Lightning, since TensorBoard loads it when it starts. It reads event files only through the
story.
"""
