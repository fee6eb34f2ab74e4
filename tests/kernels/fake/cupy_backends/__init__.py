"""CuPy for programs that run on a fake GPU, with this folder's parent on the path: see fake_driver.py."""

import fake_driver

fake_driver.install()
