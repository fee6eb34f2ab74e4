"""Train a residual convolutional network on images from an .npz.

python examples/rescnn.py cifar10.npz
"""

import modula_rs as mr
from images import train


def main(argv=None):
    def network(args, channels, pixels, classes):
        return mr.ResCNN(args.width, args.blocks, args.block_depth, channels, classes, final_norm=True)

    return train(network, __doc__, argv, width=32)


if __name__ == "__main__":
    main()
