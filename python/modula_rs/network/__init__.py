"""Networks: modules that compose, atoms with weights, bonds without, and the architectures built from them."""
