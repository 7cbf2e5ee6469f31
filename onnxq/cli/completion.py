"""`completion`: click's own completion script."""

from __future__ import annotations

import click

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash: onnxq completion bash > ~/.onnxq-complete.sh; echo '. ~/.onnxq-complete.sh' >> ~/.bashrc
    fish: onnxq completion fish > ~/.config/fish/completions/onnxq.fish
    """
    from click.shell_completion import get_completion_class

    from onnxq.cli.app import cli

    found = get_completion_class(shell)
    assert found is not None  # click ships these three
    # bash's class asks the bash on this machine for its version, which need not be the one of the user.
    source = found(cli, {}, "onnxq", "_ONNXQ_COMPLETE")
    click.echo(source.source_template % source.source_vars())
