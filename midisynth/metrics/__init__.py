"""What is wrong with a rendering, in numbers: plain functions in `functional`, the same as torchmetrics in `scores`."""
