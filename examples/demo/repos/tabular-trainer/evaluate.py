import argparse

from trainer import Linear, read_table

METRICS = {
    "mae": lambda errors: sum(abs(error) for error in errors) / len(errors),
    "mse": lambda errors: sum(error * error for error in errors) / len(errors),
}

parser = argparse.ArgumentParser(description="Measure a saved model on a CSV file.")
parser.add_argument("--model", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--metric", choices=sorted(METRICS), default="mse")
options = parser.parse_args()

table = read_table(options.data).scaled()
model = Linear.load(options.model)
errors = [model.predict(row) - target for row, target in zip(table.rows, table.targets)]
print(f"{options.metric} over {len(table)} rows: {METRICS[options.metric](errors):.4f}")
