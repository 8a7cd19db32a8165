import argparse

from trainer import Linear, read_table

parser = argparse.ArgumentParser(description="Fit a linear model to a CSV file.")
parser.add_argument("--data", required=True)
parser.add_argument("--task", choices=["regress", "classify"], default="regress")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--lr", type=float, default=0.05)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--save", metavar="FILE")
options = parser.parse_args()

table = read_table(options.data).scaled()
model = Linear(len(table.rows[0]), options.task, options.seed)
every = max(1, options.epochs // 10)
for epoch, loss in enumerate(model.fit(table, options.epochs, options.lr), start=1):
    if epoch % every == 0:
        print(f"epoch {epoch}: loss {loss:.4f}", flush=True)
if options.save:
    model.save(options.save)
    print(f"saved to {options.save}")
