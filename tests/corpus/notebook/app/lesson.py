import pathlib

import markupsafe
import six


def rows(directory):
    return sum(1 for _ in open(pathlib.Path(directory, "rows.csv")))

if __name__ == "__main__":
    print(rows("/course/data"), markupsafe.escape("<"), six.PY3)
