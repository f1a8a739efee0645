"""What the kernel is told so that it runs arm64 programs, and how it is seen that it does."""

from pathlib import Path

import pytest

from tests.lab import emulation, tools

LINE = r":qemu-aarch64:M::\x7f\x45\x4c\x46\xb7\x00:\xff\xff:/usr/libexec/aarch64-binfmt-P:OP"
ENTRY = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: {flags}\noffset 0\nmagic {magic}\nmask ffffff00\n"
X86 = "7f454c4602010100000000000000000002003e00"


def _kernel(folder: Path, **entries: str) -> Path:
    (folder / "register").touch(mode=0o200)
    (folder / "status").write_text("enabled\n")
    for name, text in entries.items():
        (folder / name).write_text(text)
    return folder


def test_the_entry_has_our_name_our_program_and_the_flag_by_which_containers_have_it():
    told = emulation.entry(LINE, Path("/cache/qemu"))
    assert told == rf":{emulation.NAME}:M::\x7f\x45\x4c\x46\xb7\x00:\xff\xff:/cache/qemu:FOP"


def test_a_handler_is_one_for_arm64_that_is_on_and_needs_nothing_in_containers(tmp_path):
    good = ENTRY.format(flags="POF", magic=emulation._ARM64)
    assert emulation.handler(_kernel(tmp_path, amd64=ENTRY.format(flags="F", magic=X86))) == ""
    assert emulation.handler(_kernel(tmp_path, local=ENTRY.format(flags="P", magic=emulation._ARM64))) == ""
    assert emulation.handler(_kernel(tmp_path, off=good.replace("enabled", "disabled"))) == ""
    assert emulation.handler(_kernel(tmp_path, theirs=good)) == "theirs"


def test_where_binfmt_misc_is_not_mounted_there_is_no_handler(tmp_path):
    assert emulation.handler(tmp_path / "absent") == ""


def test_who_is_not_root_is_told_so(monkeypatch):
    monkeypatch.setattr(emulation.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(emulation.os, "getuid", lambda: 1000)
    with pytest.raises(tools.Missing, match=r"\[missing: binfmt_misc\] only root"), emulation.arm64():
        pytest.fail("it went on")


def test_on_such_a_machine_nothing_has_to_be_done(monkeypatch):
    monkeypatch.setattr(emulation.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(emulation, "_register", lambda text: pytest.fail(f"the kernel was told {text}"))
    with emulation.arm64() as by:
        assert by == "this machine"
