import gc

gc.disable()  # while modules are loaded: there is nothing to collect, and looking for it takes a tenth of the start
# Likewise what a run needs has its records as NamedTuples: Python takes a millisecond to make a frozen dataclass.

from lstmcli.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main()
