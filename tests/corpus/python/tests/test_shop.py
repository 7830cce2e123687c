import unittest

from shop import greet


class Greet(unittest.TestCase):
    def test_escapes(self):
        self.assertEqual(greet("<b>"), "Hello, &lt;b&gt;!")
