"""Pure planners: a view of the cluster in, a decision with its reasons out."""
