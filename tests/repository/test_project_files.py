"""The files that a project has beside its code agree with it."""

import re
from datetime import date

import pytest
import yaml

import lit_sparse
from tests.conftest import REPOSITORY


def text_of(name):
    return (REPOSITORY / name).read_text(encoding="utf-8")


def test_the_citation_is_of_this_version_and_of_the_paper():
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors", "version"} <= citation.keys()
    assert str(citation["version"]) == lit_sparse.__version__
    assert citation["type"] == "software" and citation["license"] in text_of("pyproject.toml")
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Draye", "Lei", "Pan", "Posner", "Schölkopf"]
    assert any("2512.05865" in one["value"] for one in paper["identifiers"])
    (bibtex,) = re.findall(r"```bibtex\n(.*?)```", text_of("README.md"), re.S)
    assert paper["title"] in bibtex and f"year = {{{paper['year']}}}" in bibtex
    assert all(f"{one['given-names']}" in bibtex for one in paper["authors"])
    allowed = {"name", "family-names", "given-names", "orcid", "affiliation", "email", "alias", "website"}
    assert all(author.keys() <= allowed for author in [*citation["authors"], *paper["authors"]])


def lint_lines():
    """The commands of `make lint`."""
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", text_of("Makefile"), re.M)
    return [line.strip().replace("$(VENV)", ".venv") for line in recipe.splitlines()]


def test_the_hooks_are_the_lines_of_make_lint():
    (repository,) = yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"]
    assert repository["repo"] == "local"
    assert [hook["entry"] for hook in repository["hooks"]] == lint_lines()
    assert all(hook["language"] == "system" and hook["pass_filenames"] is False for hook in repository["hooks"])


def test_the_files_that_contributing_names_exist():
    text = text_of("CONTRIBUTING.md")
    paths = set(re.findall(r"`(?:make test ARGS=)?([\w./-]+/[\w./-]*|[\w.-]+\.(?:md|cff|toml))`", text))
    assert {"lit_sparse/attention/gates/logit.py", "lit_sparse/circuits/tasks/gendered_pronoun.py"} <= paths
    assert not [path for path in paths if not (REPOSITORY / path).exists()]


def test_the_targets_that_contributing_names_exist():
    named = set(
        re.findall(r"`make ([\w./-]+)", text_of("CONTRIBUTING.md") + text_of(".github/pull_request_template.md"))
    )
    targets = set(re.findall(r"^([\w$(){}./-]+):(?!=)", text_of("Makefile").replace("$(VENV)", ".venv"), re.M))
    assert named and named <= targets


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_an_issue_form_is_one(name):
    form = yaml.safe_load(text_of(f".github/ISSUE_TEMPLATE/{name}.yml"))
    assert {"name", "description", "body"} <= form.keys()
    fields = [field["id"] for field in form["body"]]
    assert len(fields) == len(set(fields))
    assert all(
        field["type"] in ("textarea", "input", "dropdown") and field["attributes"]["label"] for field in form["body"]
    )


def test_the_changelog_has_this_version_under_what_is_not_released():
    heads = re.findall(r"^## \[(.+?)\](?: - (.+))?$", text_of("CHANGELOG.md"), re.M)
    assert heads[0][0] == "Unreleased" and lit_sparse.__version__ in [version for version, _ in heads]
    assert all(date.fromisoformat(day) for _, day in heads if day)
    kinds = set(re.findall(r"^### (.+)$", text_of("CHANGELOG.md"), re.M))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
