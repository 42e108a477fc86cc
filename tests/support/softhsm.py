"""Tokens in software (SoftHSM), and a PKCS#11 module that goes wrong when it is told to.

Rules of this module: the tokens are in a folder of their own, which SOFTHSM2_CONF names; a process finds them by that
variable. The faulty module passes every call on to SoftHSM, but for the one that a file names.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote

import pytest

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
PIN, SO_PIN = "4711-a-pin", "12345678"

FAULTS = {
    "hang": "",
    "crash": "",
    "session lost": "0xB3",  # CKR_SESSION_HANDLE_INVALID
    "removed": "0x32",  # CKR_DEVICE_REMOVED
    "logged out": "0x101",  # CKR_USER_NOT_LOGGED_IN
    "general": "0x5",  # CKR_GENERAL_ERROR
    "full": "0xB1",  # CKR_SESSION_COUNT, by C_OpenSession
    "locked": "0x40000",  # a flag of the token
    "final try": "0x20000",  # likewise
}
"""What the faulty module can do: the first ones when it encrypts, decrypts or signs, or as they say."""

_SOURCE = r"""
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
typedef unsigned long ulong;
typedef struct { unsigned char version[2]; void *f[68]; } list;
static list ours, *theirs;
static int fault(char *text) {
    FILE *file = fopen("@FAULT@", "r");
    if (!file) return 0;
    if (!fgets(text, 64, file)) text[0] = 0;
    fclose(file);
    return text[0] != 0;
}
static ulong work(void) {
    char text[64];
    if (!fault(text)) return 0;
    if (!strcmp(text, "hang")) for (;;) sleep(1000);
    if (!strcmp(text, "crash")) abort();
    if (!strncmp(text, "work ", 5)) return strtoul(text + 5, 0, 0);
    return 0;
}
static ulong encrypt_init(ulong s, void *m, ulong k) {
    ulong r = work();
    return r ? r : ((ulong (*)(ulong, void *, ulong))theirs->f[29])(s, m, k);
}
static ulong decrypt_init(ulong s, void *m, ulong k) {
    ulong r = work();
    return r ? r : ((ulong (*)(ulong, void *, ulong))theirs->f[33])(s, m, k);
}
static ulong sign_init(ulong s, void *m, ulong k) {
    ulong r = work();
    return r ? r : ((ulong (*)(ulong, void *, ulong))theirs->f[42])(s, m, k);
}
static ulong random_bytes(ulong s, void *out, ulong size) {
    ulong r = work();
    return r ? r : ((ulong (*)(ulong, void *, ulong))theirs->f[64])(s, out, size);
}
static ulong open_session(ulong slot, ulong flags, void *a, void *n, ulong *s) {
    char text[64];
    if (fault(text) && !strncmp(text, "open ", 5)) return strtoul(text + 5, 0, 0);
    return ((ulong (*)(ulong, ulong, void *, void *, ulong *))theirs->f[12])(slot, flags, a, n, s);
}
static ulong token_info(ulong slot, char *info) {
    char text[64];
    ulong r = ((ulong (*)(ulong, char *))theirs->f[6])(slot, info);
    if (!r && fault(text) && !strncmp(text, "flag ", 5)) *(ulong *)(info + 96) |= strtoul(text + 5, 0, 0);
    return r;
}
ulong C_GetFunctionList(list **out) {
    if (!theirs) {
        void *lib = dlopen("@MODULE@", RTLD_NOW);
        if (!lib) return 5;
        ((ulong (*)(list **))dlsym(lib, "C_GetFunctionList"))(&theirs);
        ours = *theirs;
        ours.f[3] = C_GetFunctionList;
        ours.f[6] = token_info;
        ours.f[12] = open_session;
        ours.f[29] = encrypt_init;
        ours.f[33] = decrypt_init;
        ours.f[42] = sign_init;
        ours.f[64] = random_bytes;
    }
    *out = &ours;
    return 0;
}
"""


@dataclass(frozen=True)
class Tokens:
    """A folder of tokens. ``environment`` leads modules to it."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Self:
        """Make the folder, with a token ``notary`` and in it an AES key ``kek``."""
        (folder / "tokens").mkdir(parents=True)
        made = cls(folder)
        (folder / "softhsm2.conf").write_text(
            f"directories.tokendir = {folder}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        (folder / "pin").write_text(PIN + "\n")
        made.add_token("notary")
        made.add_key("notary", "kek")
        return made

    @property
    def environment(self) -> dict[str, str]:
        return {"SOFTHSM2_CONF": f"{self.folder}/softhsm2.conf"}

    def seen_by(self, monkeypatch: pytest.MonkeyPatch) -> Self:
        """Lead modules of this process, and of those that it starts, to the folder."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        return self

    def add_token(self, label: str) -> None:
        self._run("softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", SO_PIN, "--pin", PIN)

    def add_key(self, token: str, label: str, *more: str, kind: str = "AES:32") -> None:
        options = more or ("--sensitive",)
        self.tool(token, "--keygen", "--key-type", kind, "--label", label, *options)

    def tool(self, token: str, *arguments: str) -> str:
        """Run pkcs11-tool, logged in to a token."""
        return self._run("pkcs11-tool", "--module", MODULE, "--token-label", token, "--login", "--pin", PIN, *arguments)

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, f"{command[0]}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def uri(self, token: str = "notary", key: str = "kek", module: str = MODULE, more: str = "") -> str:
        """The URI of a key."""
        place = f"token={quote(token)};object={quote(key)}{more}"
        return f"pkcs11:{place}?module-path={module}&pin-source=file:{self.folder}/pin"

    def inside(self, module: str = MODULE) -> str:
        """The URI of the token, to keep keys inside."""
        return f"pkcs11:token=notary?module-path={module}&pin-source=file:{self.folder}/pin&keep=inside"

    # -- faults -------------------------------------------------------------------------------------------------------

    def faulty_module(self) -> str:
        """The path of the module that goes wrong when it is told to."""
        module = self.folder / "faulty.so"
        source = self.folder / "faulty.c"
        source.write_text(_SOURCE.replace("@FAULT@", f"{self.folder}/fault").replace("@MODULE@", MODULE))
        self._run("gcc", "-shared", "-fPIC", "-o", str(module), str(source), "-ldl")
        return str(module)

    def go_wrong(self, fault: str) -> None:
        """Let the faulty module go wrong from now on; "" ends that."""
        at = {"full": "open ", "locked": "flag ", "final try": "flag "}.get(fault, "work " if FAULTS.get(fault) else "")
        (self.folder / "fault").write_text(at + (FAULTS[fault] or fault) if fault else "")

    def remove(self) -> None:
        """Take the tokens away."""
        (self.folder / "tokens").rename(self.folder / "away")
        (self.folder / "tokens").mkdir()

    def put_back(self) -> None:
        """End the removal."""
        (self.folder / "tokens").rmdir()
        (self.folder / "away").rename(self.folder / "tokens")
