"""Tables: numbers from a CSV file, scaled to mean 0 and deviation 1."""

import csv
import statistics


class Table:
    def __init__(self, names, rows, targets):
        self.names = names
        self.rows = rows
        self.targets = targets

    def __len__(self):
        return len(self.rows)

    def scaled(self):
        columns = list(zip(*self.rows))
        means = [statistics.fmean(column) for column in columns]
        deviations = [statistics.pstdev(column) or 1.0 for column in columns]
        rows = [
            [(value - mean) / deviation for value, mean, deviation in zip(row, means, deviations)]
            for row in self.rows
        ]
        return Table(self.names, rows, self.targets)


def read_table(path):
    with open(path, newline="") as file:
        header, *lines = list(csv.reader(file))
    numbers = [[float(cell) for cell in line] for line in lines]
    return Table(header, [line[:-1] for line in numbers], [line[-1] for line in numbers])
