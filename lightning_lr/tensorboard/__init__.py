"""TensorBoard's tab "Learning rates": what it serves, and the page; it imports neither torch nor Lightning."""
