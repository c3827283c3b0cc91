"""The command app."""

from collections.abc import Sequence

from delta_transfer.cli.arguments import parse_command
from delta_transfer.config.commands import (
    AppOptions,
)
from delta_transfer.utils.progress import progress_bar


def app(args: Sequence[str]) -> None:
    """Run the command with its arguments."""
    options = parse_command("app", AppOptions, args, positional=["run"])
    from delta_transfer.app import server

    server.need_app_libraries()
    with server.listen(options.host, options.port) as listener:
        from delta_transfer.app.load_run import load_run
        from delta_transfer.app.web_app import create_app

        explainer = load_run(
            options.run,
            examples=options.examples,
            progress=progress_bar,
            data_root=options.data_root,
            device=options.device,
        )
        hosts = server.allowed_hosts(listener, options.host)
        site = create_app(explainer, hosts=hosts, limit=options.max_mb * 2**20)
        print(f"page     {server.browser_url(listener, options.host)}", flush=True)
        print("         press Ctrl-C to stop", flush=True)
        server.serve(site, listener)
