"""The forward pass: the steps to which a tree is flattened, the walk that runs them, gradients, and the arithmetic of atoms and bonds."""
