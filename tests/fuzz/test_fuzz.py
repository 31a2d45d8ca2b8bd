"""Every entry point that reads users' text or bytes, with the inputs of the corpus and a few new ones."""

import pytest
from entry_points import ENTRIES
from hypothesis import HealthCheck, given, settings
from property import check

SHORT = settings(deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", ENTRIES)
def test_valid_files_are_read(name, tmp_path):
    entry = ENTRIES[name]()
    for file, content in entry.valid():
        assert check(entry, tmp_path, file, content) == ""


@pytest.mark.parametrize("name", ENTRIES)
def test_inputs_of_the_corpus(name, tmp_path):
    entry = ENTRIES[name]()
    for file, content in entry.kept():
        check(entry, tmp_path, file, content)


@pytest.mark.parametrize("name", ENTRIES)
def test_any_file_is_read_or_refused_in_one_line(name, tmp_path_factory):
    entry, folder = ENTRIES[name](), tmp_path_factory.mktemp(name)

    @settings(SHORT, max_examples=entry.short)
    @given(entry.examples())
    def run(example):
        check(entry, folder, *example)

    run()
