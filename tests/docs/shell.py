"""Blocks of commands, given to bash, with every `probe` in them answered by the tests.

So loops, variables and globs mean what they mean to a reader, and a `probe` costs no new process and no import of torch.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

Answer = Callable[[Sequence[str], Path], tuple[int, str]]
"""Command line and working directory -> exit code, and what is printed."""

CALL = """
{name}() {{
    printf '%s\\0' "$(( $# + 1 ))" {name} "$@" "$PWD" >&"$ASK"
    local code; IFS= read -r -u "$ANSWER" code
    cat -- "$PRINTED"
    return "$code"
}}
"""


def run(script: str, folder: Path, answers: dict[str, Answer], *, path: str | None = None) -> tuple[int, str]:
    """Give a script to bash.

    Args:
        script: What bash reads.
        folder: Where it starts.
        answers: Commands that are answered here.
        path: Where bash looks for all others; by default where this process does.

    Returns:
        The exit code of the last command, and everything that was printed, errors included.
    """
    asked, ask = os.pipe()
    reply, answer = os.pipe()
    with tempfile.TemporaryDirectory() as scratch:
        printed = Path(scratch, "printed")
        variables = {"ASK": str(ask), "ANSWER": str(reply), "PRINTED": str(printed), "PATH": path or os.environ["PATH"]}
        preamble = "".join(CALL.format(name=name) for name in answers)
        with Path(scratch, "output").open("w+b") as output:
            bash = subprocess.Popen(
                ["/bin/bash", "-c", f"{preamble}\ncd {shlex.quote(str(folder))}\n{script}\n"],
                env=os.environ | variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(ask, reply),
            )
            os.close(ask)
            os.close(reply)
            with os.fdopen(asked, "rb") as requests, os.fdopen(answer, "w") as codes:
                # Ends when bash, which alone holds the other end, has ended.
                while count := _field(requests):
                    name, *arguments = (_field(requests) for _ in range(int(count)))
                    where = Path(_field(requests))
                    code, text = answers[name](arguments, where)
                    printed.write_text(text, encoding="utf-8")
                    codes.write(f"{code}\n")
                    codes.flush()
            bash.wait()
            output.seek(0)
            return bash.returncode, output.read().decode()


def _field(stream: BinaryIO) -> str:
    """The next text that ends with a null character; empty at the end of the stream."""
    text = bytearray()
    while (byte := stream.read(1)) not in (b"", b"\0"):
        text += byte
    return text.decode()
