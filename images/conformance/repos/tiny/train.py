import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--lr", type=float, default=0.1)
options = parser.parse_args()
for epoch in range(options.epochs):
    print(f"epoch {epoch + 1} at {options.lr}")
