"""The forward pass: the steps a tree flattens to, the walk that runs them, gradients, and the arithmetic of atoms and bonds."""
