"""`probe report` and `probe view`: runs as a page to explore, in one file to share, or on loopback while a run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vlm_probe.probes.cli.settings import Config, Json, Overwrite
from vlm_probe.stimuli.ranges import MOTIONS, PAGE_SIZE, whole

Runs = Annotated[
    tuple[Path, ...],
    Parameter(name="RUNS", help="Folders of runs, folders that hold runs, or trial tables (.csv, .parquet)."),
]
Size = Annotated[int, Parameter(validator=PAGE_SIZE)]
Motions = Annotated[int, Parameter(validator=MOTIONS)]


def report(
    runs: Runs,
    /,
    *,
    out: Path = Path("report.html"),
    overwrite: Overwrite = False,
    size: Size = 224,
    motions: Motions = 100,
    json: Json = False,
    config: Config = None,
) -> int:
    """Write runs as one HTML file to explore: overview, transfer matrix, filters, every item with image and reply.

    The file needs no network and no other file. The same logs give the same bytes. Numbers for a paper come from
    `probe analyze`.

    Args:
        out: The file.
        size: Longest edge of images in pixels; 0 leaves them out.
        motions: Scenes and answers that are simulated again to show what happens, spread over the tests.
    """
    from vlm_probe.analysis.page.build import build
    from vlm_probe.analysis.page.motion import Motions
    from vlm_probe.analysis.page.pictures import Pictures
    from vlm_probe.probes.cli.console import show, show_json, tell
    from vlm_probe.probes.cli.errors import SUCCESS
    from vlm_probe.stimuli.output import claim_file, write_whole

    claim_file(out, overwrite=overwrite)
    page = build(runs, Pictures(size), Motions(motions))
    write_whole(out, page.html)
    for note in page.notes:
        tell(note)
    made = {
        "out": str(out),
        "trials": page.n_trials,
        "pictures": page.n_pictures,
        "motions": page.n_motions,
        "bytes": out.stat().st_size,
    }
    if json:
        show_json(made)
    else:
        show(
            f"{out}: {page.n_trials} trials, {page.n_pictures} pictures, {page.n_motions} simulated,"
            f" {out.stat().st_size / 1e6:.1f} MB"
        )
    return SUCCESS


def view(
    runs: Runs,
    /,
    *,
    port: Annotated[int, Parameter(validator=whole(0, 65_535))] = 8377,
    size: Size = 224,
    motions: Motions = 100,
    config: Config = None,
) -> int:
    """Show the same page at an address of this machine, while runs go on: it says when there are new trials.

    Nothing but this machine can reach it. Ctrl-C ends it.

    Args:
        port: 0 takes a free one.
        size: Longest edge of images in pixels; 0 leaves them out.
        motions: Scenes and answers that are simulated again to show what happens.
    """
    from vlm_probe.analysis.page.motion import Motions
    from vlm_probe.analysis.page.pictures import Pictures
    from vlm_probe.analysis.page.server import HOST, View, make_server
    from vlm_probe.probes.cli.console import show, tell
    from vlm_probe.probes.cli.errors import SUCCESS, CommandError

    shown = View(runs, Pictures(size), Motions(motions))
    for note in shown.page().notes:  # a wrong path is told now, and the first reader does not wait
        tell(note)
    try:
        server = make_server(shown, port)
    except OSError as error:
        raise CommandError(f"cannot serve on port {port} ({error.strerror}): choose another with --port") from error
    with server:
        show(f"http://{HOST}:{server.server_address[1]}/ (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            tell("ended")
    return SUCCESS
