"""What users call on arrays: convolutions, gradients and pooling, and the steps that their calls share."""
