"""``zipper completion SHELL``: a script that lets the shell complete zipper's commands, options and gin files.

The scripts are thin: at each Tab they ask ``zipper completion words``, which reads the words typed so far from standard
input, a line each, the last one unfinished (maybe empty), and prints what may stand in its place. So what is completed
is what the parsers know, in every shell alike.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence

DESCRIPTION = """\
Print a script that completes commands, options, choices and gin files:

  zipper completion bash > ~/.local/share/bash-completion/completions/zipper
  zipper completion zsh > "${fpath[1]}/_zipper"
  zipper completion fish > ~/.config/fish/completions/zipper.fish

Or for this shell alone: source <(zipper completion bash).
"""

# readline takes what follows the last = or : for the word that is completed, so what lies before must go.
_BASH = """\
_zipper() {
    local -a typed
    read -ra typed <<< "${COMP_LINE:0:COMP_POINT}"
    [[ "${COMP_LINE:0:COMP_POINT}" == *[[:space:]] ]] && typed+=("")
    mapfile -t COMPREPLY < <(printf '%s\\n' "${typed[@]:1}" | "${typed[0]}" completion words 2>/dev/null)
    [[ ${#COMPREPLY[@]} == 1 && "${COMPREPLY[0]}" == *[=.] ]] && compopt -o nospace 2>/dev/null
    local current="${typed[-1]}"
    if [[ "$current" == *[=:]* && "$COMP_WORDBREAKS" == *[=:]* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${current%"${current##*[=:]}"}"}")
    fi
}
complete -o default -F _zipper zipper
"""
_ZSH = """\
#compdef zipper
_zipper() {
    local -a found
    found=("${(@f)$(printf '%s\\n' "${(@)words[2,CURRENT]}" | $words[1] completion words 2>/dev/null)}")
    if [[ -z "$found" ]]; then
        _files
    else
        compadd -- ${found:#*[=.]}
        compadd -S '' -- ${(M)found:#*[=.]}
    fi
}
compdef _zipper zipper
"""
_FISH = """\
function __zipper_words
    set -l typed (commandline -opc)
    set -l current (commandline -ct)
    set -l found (printf '%s\\n' $typed[2..] "$current" | $typed[1] completion words 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\\n' $found
    else
        __fish_complete_path "$current"
    end
end
complete -c zipper -f -a '(__zipper_words)'
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's argument."""
    parser.description = DESCRIPTION
    parser.add_argument("shell", choices=[*SCRIPTS, "words"], help="which shell; words: what the scripts call")


def run(args: argparse.Namespace) -> int:
    """Returns 0."""
    if args.shell == "words":
        found = words(sys.stdin.read().removesuffix("\n").split("\n"))
        print("".join(f"{word}\n" for word in found), end="")
    else:
        print(SCRIPTS[args.shell], end="")
    return 0


def words(typed: Sequence[str]) -> list[str]:
    """What may stand in place of the last word typed behind ``zipper``; nothing where any file may."""
    from zipper_jax.cli import main

    *before, current = typed
    if not before:
        return _starting(current, [*main.COMMANDS, "--help", "--version"])
    if before[0] not in main.COMMANDS:
        return []
    if before[0] == "launch" and "--" in before:  # a command of its own
        return words(typed[before.index("--") + 1 :])
    module, parser = main.command_parser(before[0])
    for word in before[1:]:
        parser = next((a.choices[word] for a in _subcommands(parser) if word in a.choices), parser)
    takes = getattr(module, "TAKES_GIN_FLAGS", False)
    takes_gin = before[0] != "launch" and (takes is True or bool(takes and set(takes) & set(before[1:])))
    values = {option: list(a.choices or ()) for a in parser._actions if a.nargs != 0 for option in a.option_strings}
    if takes_gin:
        from zipper_jax.cli.gin_path import known_files

        values["--gin_file"] = sorted(known_files())
    if before[-1] in values:
        return _starting(current, values[before[-1]])
    option, equals, _ = current.partition("=")
    if equals:
        return _starting(current, [f"{option}={value}" for value in values.get(option, ())])
    if current.startswith("-"):
        options = [option for action in parser._actions for option in action.option_strings]
        return _starting(current, [*options, *(["--gin_file=", "--gin."] if takes_gin else [])])
    choices = [choice for action in parser._actions if not action.option_strings for choice in action.choices or ()]
    return _starting(current, choices)


def _subcommands(parser: argparse.ArgumentParser) -> list[argparse._SubParsersAction]:
    # argparse has no public way to ask a parser what it knows.
    return [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]


def _starting(current: str, known: Iterable[object]) -> list[str]:
    return [word for word in map(str, known) if word.startswith(current)]
