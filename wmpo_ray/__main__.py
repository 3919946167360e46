"""`python -m wmpo_ray` and the `wmpo` command."""


def main() -> None:
    # The one arrow from the library to `cluster`: taken only when the command line is asked for.
    from cluster.cli.app import app

    app(prog_name="wmpo")


if __name__ == "__main__":
    main()
