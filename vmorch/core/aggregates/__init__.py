"""The things whose history is kept: their state, what can be decided about them, how events change them."""
