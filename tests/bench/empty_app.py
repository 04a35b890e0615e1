"""The least that a typer app can be that shows one rich table: the floor for what people run."""

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer()


@app.command()
def show() -> None:
    table = Table("one", "two")
    for number in range(14):
        table.add_row(str(number), "a cell")
    Console().print(table)


if __name__ == "__main__":
    app()
