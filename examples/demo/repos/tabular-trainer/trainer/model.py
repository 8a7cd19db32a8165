"""One linear unit, trained row by row."""

import json
import math
import random


class Linear:
    def __init__(self, width, task="regress", seed=0):
        if task not in ("regress", "classify"):
            raise ValueError(f"unknown task {task!r}")
        source = random.Random(seed)
        self.task = task
        self.weights = [source.uniform(-0.1, 0.1) for _ in range(width)]
        self.bias = 0.0

    def predict(self, row):
        if len(row) != len(self.weights):
            raise ValueError(f"expected {len(self.weights)} features, got {len(row)}")
        total = self.bias + sum(w * x for w, x in zip(self.weights, row))
        return 1 / (1 + math.exp(-total)) if self.task == "classify" else total

    def step(self, row, target, lr):
        error = self.predict(row) - target
        self.bias -= lr * error
        self.weights = [w - lr * error * x for w, x in zip(self.weights, row)]
        return error * error

    def fit(self, table, epochs, lr):
        """Yield the mean squared error of each epoch."""
        for _ in range(epochs):
            pairs = zip(table.rows, table.targets)
            yield sum(self.step(row, target, lr) for row, target in pairs) / len(table)

    def save(self, path):
        with open(path, "w") as file:
            json.dump(vars(self), file)

    @classmethod
    def load(cls, path):
        with open(path) as file:
            content = json.load(file)
        model = cls(len(content["weights"]), content["task"])
        model.weights, model.bias = content["weights"], content["bias"]
        return model
