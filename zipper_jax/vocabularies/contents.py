"""Contents that users give a vocabulary: checked before they are encoded."""

from typing import Any

from zipper_jax.utils.errors import UserError


def require_text(content: Any) -> str:
    """Return ``content``. Raises UserError if it is no string."""
    if not isinstance(content, str):
        raise UserError(f"content = {content!r}: expected a string")
    return content
