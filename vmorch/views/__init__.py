"""Read models: what the log says, laid out for questions. They can be dropped at any time."""
