"""The parts of a captured image that are not Python: shell and tools, C library run-time parts, certificates, zones, /etc.

What to take is tables; host paths stay as they are, with the links that lead to them. Nothing of /etc is copied as a whole:
its files are written here, so no user, host name or mount of this machine gets into an image.
"""

from __future__ import annotations

import glob
import logging
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from sandbox.image.capture_elf import Elf, Linker, read_elf
from sandbox.image.capture_plan import Plan

log = logging.getLogger(__name__)

# Where tools are looked up: never along the user's PATH, which leads into home directories.
TOOL_DIRECTORIES = ("/usr/bin", "/bin", "/usr/sbin", "/sbin")
TOOLS = tuple(
    [
        "sh",
        "dash",
        "bash",
        "rbash",
        "awk",
        "mawk",
        "gawk",
        "sed",
        "grep",
        "egrep",
        "fgrep",
        "find",
        "xargs",
        "tar",
        "gzip",
        "gunzip",
        "zcat",
        "bzip2",
        "bunzip2",
        "bzcat",
        "xz",
        "unxz",
        "xzcat",
        "zstd",
        "unzip",
        "ps",
        "top",
        "free",
        "pgrep",
        "pkill",
        "kill",
        "uptime",
        "watch",
        "vmstat",
        "pidof",
        "which",
        "hostname",
        "getent",
        "iconv",
        "ldconfig",
        "ldconfig.real",
        "diff",
        "cmp",
        "less",
        "more",
        "getopt",
        "setsid",
        "flock",
        "clear",
        "tput",
        "reset",
        "tempfile",
        "run-parts",
        "[",
        "arch",
        "b2sum",
        "base32",
        "base64",
        "basename",
        "basenc",
        "cat",
        "chgrp",
        "chmod",
        "chown",
        "chroot",
        "cksum",
        "comm",
        "cp",
        "csplit",
        "cut",
        "date",
        "dd",
        "df",
        "dir",
        "dircolors",
        "dirname",
        "du",
        "echo",
        "env",
        "expand",
        "expr",
        "factor",
        "false",
        "fmt",
        "fold",
        "groups",
        "head",
        "hostid",
        "id",
        "install",
        "join",
        "link",
        "ln",
        "logname",
        "ls",
        "md5sum",
        "mkdir",
        "mkfifo",
        "mknod",
        "mktemp",
        "mv",
        "nice",
        "nl",
        "nohup",
        "nproc",
        "numfmt",
        "od",
        "paste",
        "pathchk",
        "pr",
        "printenv",
        "printf",
        "ptx",
        "pwd",
        "readlink",
        "realpath",
        "rm",
        "rmdir",
        "seq",
        "sha1sum",
        "sha224sum",
        "sha256sum",
        "sha384sum",
        "sha512sum",
        "shred",
        "shuf",
        "sleep",
        "sort",
        "split",
        "stat",
        "stty",
        "sum",
        "sync",
        "tac",
        "tail",
        "tee",
        "test",
        "timeout",
        "touch",
        "tr",
        "true",
        "truncate",
        "tsort",
        "tty",
        "uname",
        "unexpand",
        "uniq",
        "unlink",
        "users",
        "vdir",
        "wc",
        "who",
        "whoami",
        "yes",
    ]
)

# Libraries that programs open by name at run time, so no DT_NEEDED tells of them: NSS, pthread_cancel's unwinder, and what wheels count on.
OPENED_LIBRARIES = (
    "libnss_files.so.2",
    "libnss_dns.so.2",
    "libresolv.so.2",
    "libgcc_s.so.1",
    "libstdc++.so.6",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libutil.so.1",
)
CHARSETS = [
    "UTF-16",
    "UTF-32",
    "UTF-7",
    "UNICODE",
    "ISO8859-1",
    "ISO8859-2",
    "ISO8859-5",
    "ISO8859-7",
    "ISO8859-9",
    "ISO8859-15",
    "CP1250",
    "CP1251",
    "CP1252",
    "CP1254",
    "KOI8-R",
    "IBM437",
    "IBM850",
    "EUC-JP",
    "SJIS",
    "ISO-2022-JP",
    "EUC-KR",
    "GBK",
    "GB18030",
    "BIG5",
    "libJIS",
    "libJISX0213",
    "libKSC",
    "libGB",
    "libCNS",
    "libISOIR165",
]
TERMINALS = (
    "ansi",
    "dumb",
    "linux",
    "screen",
    "screen-256color",
    "tmux",
    "tmux-256color",
    "vt100",
    "vt220",
    "xterm",
    "xterm-256color",
    "xterm-color",
)
TERMINAL_DIRECTORIES = ("/usr/share/terminfo", "/lib/terminfo", "/etc/terminfo")
LOCALE_ARCHIVE_CAP = 8 << 20

CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
# Where distributions keep the bundle: the first that exists is taken, the others become links when the host has them.
CA_PLACES = (CA_BUNDLE, "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem", "/etc/ssl/ca-bundle.pem", "/etc/pki/tls/cert.pem")
_CERTIFICATE = re.compile(rb"-----BEGIN ((?:TRUSTED )?CERTIFICATE)-----\r?\n.+?-----END \1-----", re.DOTALL)
_SECRET_LINE = re.compile(r"(?i)(pin|passw)")
_RELEASE_KEYS = ("ID", "ID_LIKE", "NAME", "PRETTY_NAME", "VERSION", "VERSION_CODENAME", "VERSION_ID")

DIRECTORIES = (
    ("/bin", 0o755), ("/dev", 0o755), ("/etc", 0o755), ("/home", 0o755), ("/mnt", 0o755), ("/opt", 0o755), ("/proc", 0o555), ("/root", 0o700), ("/run", 0o755),
    ("/srv", 0o755), ("/sys", 0o555), ("/tmp", 0o1777), ("/usr/local/bin", 0o755), ("/usr/local/lib", 0o755), ("/usr/local/share", 0o755), ("/var/log", 0o755),
    ("/var/lib", 0o755), ("/var/cache", 0o755), ("/var/tmp", 0o1777),
)  # fmt: skip
FILES = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "/etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n",
    "/etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    "/etc/hostname": "",
    "/etc/resolv.conf": "",
    "/etc/timezone": "Etc/UTC\n",
    "/etc/shells": "/bin/sh\n/bin/bash\n",
    "/etc/services": "".join(
        f"{name}\t{port}/{protocol}\n"
        for name, port, protocols in (
            ("ftp", 21, "tcp"), ("ssh", 22, "tcp"), ("telnet", 23, "tcp"), ("smtp", 25, "tcp"), ("domain", 53, "tcp udp"), ("http", 80, "tcp"),
            ("pop3", 110, "tcp"), ("ntp", 123, "udp"), ("imap2", 143, "tcp"), ("ldap", 389, "tcp"), ("https", 443, "tcp udp"), ("submission", 587, "tcp"),
            ("ldaps", 636, "tcp"), ("imaps", 993, "tcp"), ("pop3s", 995, "tcp"), ("mysql", 3306, "tcp"), ("postgresql", 5432, "tcp"),
        )
        for protocol in protocols.split()
    ),
    "/etc/protocols": "ip\t0\tIP\nicmp\t1\tICMP\ntcp\t6\tTCP\nudp\t17\tUDP\nipv6\t41\tIPv6\nipv6-icmp\t58\tIPv6-ICMP\n",
}  # fmt: skip


def plan_base(plan: Plan) -> None:
    """Directories, the links of a merged /usr, and /etc."""
    for path, mode in DIRECTORIES:
        if os.path.islink(path):
            plan.host_link(path)
        else:
            plan.directory(path, mode)
    for path in ("/sbin", "/lib", "/lib64", "/lib32"):
        plan.host_link(path)
    for path, text in FILES.items():
        plan.generated(path, text)
    plan.link("/etc/mtab", "/proc/self/mounts")
    plan.generated("/etc/os-release", _release())


def _release(candidates: Iterable[str] = ("/etc/os-release", "/usr/lib/os-release")) -> str:
    text = next((Path(path).read_text() for path in candidates if os.path.isfile(path)), "ID=linux\n")
    return "".join(f"{line}\n" for line in text.splitlines() if line.partition("=")[0] in _RELEASE_KEYS)


def plan_tools(plan: Plan) -> list[str]:
    """The shell and the usual small tools that this host has, and what scripts among them are run by; returns their host paths."""
    found: list[str] = []
    queue = [path for name in TOOLS if (path := _tool(name))]
    for path in queue:
        if path not in found and plan.host(path):
            found.append(path)
            queue += _interpreters(path)
    if not any(posixpath.basename(path) == "sh" for path in found):
        log.warning("no shell on this host: the image has none either")
    return found


def _tool(name: str) -> str | None:
    return next((path for directory in TOOL_DIRECTORIES if os.path.isfile(path := f"{directory}/{name}")), None)


def _interpreters(path: str) -> Iterator[str]:
    with open(path, "rb") as file:
        line = file.readline(256)
    if line.startswith(b"#!") and (words := line[2:].split()):
        name = os.fsdecode(words[-1] if words[0].endswith(b"/env") else words[0])
        if found := _tool(posixpath.basename(name)):
            yield found


def run_time_files(linker: Linker, asker: Elf) -> Iterator[str]:
    """Host paths of libraries and data that the C library opens by itself, for programs like `asker`."""
    libc = linker.find("libc.so.6", asker)
    for name in OPENED_LIBRARIES:
        if path := linker.find(name, asker):
            yield path
    folder = posixpath.join(posixpath.dirname(os.path.realpath(libc)), "gconv") if libc else ""
    yield from (f"{folder}/{name}.so" for name in CHARSETS if os.path.isfile(f"{folder}/{name}.so"))
    indexes = ("gconv-modules", "gconv-modules.cache", "gconv-modules.d/*.conf")
    yield from (path for pattern in indexes for path in sorted(glob.glob(f"{folder}/{pattern}")))


def plan_data(plan: Plan) -> None:
    """Time zones, the C.UTF-8 locale (the others where they are small) and the terminals people have."""
    plan.host_tree("/usr/share/zoneinfo", skip=("posix", "right", "localtime", "posixrules"))
    if os.path.isdir("/usr/share/zoneinfo"):
        plan.link("/etc/localtime", "/usr/share/zoneinfo/Etc/UTC")
    for name in ("C.utf8", "C.UTF-8"):
        plan.host_tree(f"/usr/lib/locale/{name}")
    archive = "/usr/lib/locale/locale-archive"
    if os.path.isfile(archive) and os.path.getsize(archive) <= LOCALE_ARCHIVE_CAP:
        plan.host(archive)
    for folder in TERMINAL_DIRECTORIES:
        for name in TERMINALS:
            plan.host(f"{folder}/{name[0]}/{name}")


# -- certificates ---------------------------------------------------------------------------------------------------


def plan_certificates(plan: Plan, cafile: str, capath: str, place: str) -> bool:
    """The host's certificate authorities as one bundle, where tools look and where this OpenSSL does (`place` inside); False when the host has none."""
    bundle = read_authorities((cafile, *CA_PLACES), capath)
    if not bundle:
        return False
    plan.generated(CA_BUNDLE, bundle)
    for path in (place, *(p for p in CA_PLACES if os.path.exists(p))):
        if path and plan.resolve(path) != plan.resolve(CA_BUNDLE):
            plan.link(path, CA_BUNDLE)
    return True


def read_authorities(files: Iterable[str], folder: str) -> bytes:
    """The certificates, and nothing else (a PEM file may hold a private key too), of the first bundle that has any, else of the directory."""
    for path in files:
        if path and os.path.isfile(path) and (found := certificates(path)):
            return found
    names = sorted(os.listdir(folder)) if folder and os.path.isdir(folder) else []
    return b"".join(dict.fromkeys(certificates(os.path.join(folder, name)) for name in names if name.endswith((".pem", ".crt", ".0"))))


def certificates(path: str) -> bytes:
    """The certificate blocks of one PEM file."""
    return b"".join(match[0].rstrip() + b"\n" for match in _CERTIFICATE.finditer(Path(path).read_bytes()))


def plan_openssl(plan: Plan, folder: str, place: str) -> None:
    """OpenSSL's configuration (distributions set the security level there) without the lines that can hold a PIN or password."""
    source = posixpath.join(folder, "openssl.cnf")
    if folder and os.path.isfile(source):
        lines = Path(source).read_text(errors="replace").splitlines(keepends=True)
        plan.generated(posixpath.join(place, "openssl.cnf"), "".join(line for line in lines if not _SECRET_LINE.search(line)))


def provider_modules(linker: Linker, asker: Elf) -> Iterator[str]:
    """OpenSSL's loadable providers beside its library."""
    if library := linker.find("libcrypto.so.3", asker):
        yield from sorted(glob.glob(posixpath.join(posixpath.dirname(os.path.realpath(library)), "ossl-modules", "*.so")))


def elves(paths: Iterable[str]) -> list[Elf]:
    """Those of the host paths that are ELF files."""
    return [elf for path in paths if (elf := read_elf(os.path.realpath(path)))]
