"""The command push: a sparse model folder to the Hugging Face hub."""

from jsonargparse import Namespace

from lit_sparse.models.push import push


def push_command(parsed: Namespace) -> None:
    """Uploads the folder.

    Raises:
        ValueError: no sparse model folder, no permission, or no connection.
    """
    url = push(
        parsed.model,
        parsed.to,
        private=parsed.private or None,
        revision=parsed.revision,
        message=parsed.message,
        license=parsed.license,
    )
    print(f"model: {url}")
