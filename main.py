"""`python main.py fit --config configs/quickstart.yaml`; the same as the console script `lit-sparse`."""

from lit_sparse.commands.main import main

if __name__ == "__main__":
    main()
