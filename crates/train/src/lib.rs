//! Training of graphs on candle: ops, optimiser, schedules, checkpoints.
