//! Pruning, masks and physical removal of what is all zero.
