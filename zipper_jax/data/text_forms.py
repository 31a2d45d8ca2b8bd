"""How the texts of a prepared folder are compared and encoded. Light: a run on packed rows reads it, too."""

from typing import Any

from zipper_jax.metrics import normalisers
from zipper_jax.metrics.normalisers import Policy, TextForm
from zipper_jax.utils import user_json
from zipper_jax.utils.storage import as_path


def read_text_form(folder: Any) -> TextForm | None:
    """Return the form that a prepared folder's header.json states; None where it states none, or there is none."""
    path, fix = as_path(folder) / "header.json", "it is damaged: delete the folder and prepare it again"
    if not path.is_file():
        return None
    header = user_json.read_object(path, fix)
    return None if header.get("text_form") is None else normalisers.read_text_form(header, repr(str(path)), fix)


def read_policy(folder: Any) -> Policy:
    """Return the policy by which a prepared folder's texts are compared; the default where it states none."""
    return (read_text_form(folder) or TextForm()).policy
