import gc

# A start makes tens of thousands of objects and no garbage; to look for it again and again takes a tenth of a short run.
gc.set_threshold(500_000)
# Likewise what a run needs has its records as NamedTuples: Python takes a millisecond to make a frozen dataclass.

from lstmcli.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main()
