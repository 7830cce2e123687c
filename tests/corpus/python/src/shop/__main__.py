import argparse
import os

from shop import greet

parser = argparse.ArgumentParser(prog="shop")
parser.add_argument("--name", default="you")
print(greet(parser.parse_args().name), os.environ["SHOP_VERSION"], os.getuid(), os.getcwd())
