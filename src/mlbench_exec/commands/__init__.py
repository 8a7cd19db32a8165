"""The commands about the user's own machine: weights, images, doctor, shell."""
