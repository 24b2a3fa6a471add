//! The networks of the paper and of torchvision, built from graph builder calls.
