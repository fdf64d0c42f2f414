"""Pure policies: `(state, input) -> (state, verdict)`, usable without Lightning and without torch."""
