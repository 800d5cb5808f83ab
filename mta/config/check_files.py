"""What `mta check` looks at besides the settings: the files they name.

Warnings, not errors: a table that is missing answers "try again later" until it is there, and that is better
than no mail at all.

See also: mta/config/check.py
"""

import os
import re
import stat
from collections.abc import Iterator

from mta.config.main_cf import Problem
from mta.config.param import Kind
from mta.config.params import declared
from mta.config.settings import Config

_FILE_TABLE = re.compile(r"(?:proxy:)?(?:hash|btree|texthash|cidr|regexp|pcre|lmdb|cdb|dbm|sqlite):(/.+)")
_INPUT_FILES = ("smtpd_tls_cert_file", "smtpd_tls_key_file", "smtpd_tls_eccert_file", "smtpd_tls_eckey_file",
                "smtpd_tls_chain_files")  # fmt: skip


def check_files(config: Config) -> list[Problem]:
    """Missing or unsuitable files, tables, directories; the queue and data directories are looked at elsewhere."""
    return [*_tables(config), *_tls_files(config), *_configuration(config)]


def _tables(config: Config) -> Iterator[Problem]:
    for param in declared():
        if param.kind not in (Kind.TABLES, Kind.LIST) or not param.honoured:
            continue
        for word in config.words(param.name):
            table = _FILE_TABLE.fullmatch(word)
            if table and not _exists(word, table[1]) and param.name != "alias_database":
                yield _missing(config, param.name, table[1])


def _exists(word: str, path: str) -> bool:
    return os.path.exists(path) or ("cdb:" in word and os.path.exists(f"{path}.cdb"))


def _tls_files(config: Config) -> Iterator[Problem]:
    if config.text("smtpd_tls_security_level") in ("", "none") and not config.boolean("smtpd_use_tls"):
        return
    for name in _INPUT_FILES:
        for file in config.text(name).replace(",", " ").split():
            if file != "none" and not os.path.exists(file):
                yield _missing(config, name, file)


def _configuration(config: Config) -> Iterator[Problem]:
    """The configuration decides who may do what: nobody else may write it."""
    for name in ("", "main.cf", "master.cf"):
        file = os.path.join(config.directory, name).rstrip("/")
        try:
            mode = os.stat(file).st_mode
        except OSError as error:
            yield Problem(file, 0, error.strerror or "cannot be read", True)
            continue
        if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:
            yield Problem(file, 0, "writable by group or others", False)


def _missing(config: Config, name: str, file: str) -> Problem:
    setting = config.settings().get(name)
    place = (setting.file, setting.line) if setting else (config.origin(name), 0)
    return Problem(*place, f"{name}: {file}: does not exist", False)
