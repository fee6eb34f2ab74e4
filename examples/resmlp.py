"""Train a residual perceptron on images from an .npz.

python examples/resmlp.py cifar10.npz
"""

import modula_rs as mr
from images import train


def main(argv=None):
    def network(args, channels, pixels, classes):
        return mr.ResMLP(args.width, args.blocks, args.block_depth, pixels, classes, final_norm=True)

    return train(network, __doc__, argv, width=256)


if __name__ == "__main__":
    main()
