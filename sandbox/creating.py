"""Make a container of an image: its record, its directory, its volumes. Nothing is started here."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from sandbox import launch, networking
from sandbox.errors import InvalidOption
from sandbox.image.store import Image, Store
from sandbox.launch import VolumeRequest
from sandbox.options import RunOptions
from sandbox.records import Record, Records
from sandbox.runtime.container import new_id
from sandbox.runtime.spec import Allowed, ContainerSpec, Mount, Rootfs
from sandbox.spreading import check_propagation
from sandbox.volumes import Volumes

_BUNDLE = 8 << 20
"""Bytes of certificates that are read of an image at most."""


class Creator:
    """Makes containers below `root`."""

    def __init__(self, root: Path, store: Store, records: Records, volumes: Volumes) -> None:
        self._root = root
        self._store = store
        self._records = records
        self._volumes = volumes

    def create(
        self, image: str | Image, argv: Sequence[str], options: RunOptions, extra: Sequence[Mount] = (), *, container_id: str | None = None
    ) -> Record:
        """A new container, stopped; ImageNotFound, InvalidOption, and then nothing is left of it."""
        with self._store.shared():
            found = self._store.find(image) if isinstance(image, str) else image
            container_id = container_id or new_id()
            spec = self._spec(container_id, found, argv, options)
            directory = self._records.directory(container_id)
            names, volumes = list[str](), list[str]()
            try:
                directory.mkdir(mode=0o700, parents=True)
                name = self._records.claim_name(container_id, options.name)
                names.append(name)
                mounts = (*self._mounts(found, directory, options, volumes), *extra)
                self._make_upper(directory, found)
                if options.host_ca:
                    spec, certificates = self._trusting_host(spec, found)
                    mounts += certificates
                made = replace(spec, mounts=mounts, endpoints=networking.with_name(spec.endpoints, name))
                record = self._record_of(made, found, name, image, options)
                self._records.write(record)
            except BaseException:
                self._records.remove(container_id, names)
                self._volumes.remove_anonymous(volumes)
                raise
        return record

    def _record_of(self, spec: ContainerSpec, image: Image, name: str, asked: str | Image, options: RunOptions) -> Record:
        config = image.config.value.config
        return Record(
            id=spec.id,
            name=name,
            image_name=asked if isinstance(asked, str) else next((name.familiar for name in self._store.names(image.id)), image.id.short),
            image_id=str(image.id),
            chain=str(image.top) if image.top else None,
            created=time.time(),
            labels=launch.make_labels(config, options),
            auto_remove=options.rm,
            restart=launch.make_restart(options),
            log=launch.make_log(options),
            stop_timeout=10.0 if options.stop_timeout is None else options.stop_timeout,
            interactive=options.interactive,
            ports=sorted(config.exposed_ports or ()),
            spec=spec,
        )

    def _spec(self, container_id: str, image: Image, argv: Sequence[str], options: RunOptions) -> ContainerSpec:
        config = image.config.value.config
        directory = self._records.directory(container_id)
        env = launch.make_env(options, os.environ, _read_file)
        network, endpoints = networking.make_network(options, self._records.find)
        return ContainerSpec(
            id=container_id,
            rootfs=Rootfs(self._store.lowers(image.top), str(directory / "upper"), str(directory / "work"), volatile=options.rm),
            process=launch.make_process(config, argv, options, env),
            hostname=launch.check_hostname(options.hostname or container_id[:12]),
            network=network,
            endpoints=endpoints,
            network_rate=options.network_rate,
            allow_net=tuple(Allowed(*each) for given in options.allow_net for each in given),
            dns=options.dns,
            dns_search=options.dns_search,
            ports=(ports := launch.make_ports(config, options)),
            serves_names=launch.serves_names(config, ports),
            userns="host" if options.userns == "host" else "private",
            limits=launch.make_limits(options, launch.block_device_number),
            read_only=options.read_only,
            cap_add=options.cap_add,
            cap_drop=options.cap_drop,
            privileged=options.privileged,
            seccomp=launch.make_seccomp(options, _read_file),
            no_new_privileges=launch.make_no_new_privileges(options),
            devices=launch.make_devices(options),
            sysctls=launch.make_sysctls(options),
            oom_score_adj=launch.make_oom_score_adj(options),
            storage_size=options.storage_opt,
            output_limit=options.output_limit,
            ulimits=options.ulimit,
            extra_hosts=launch.make_hosts(options),
            stop_signal=launch.make_stop_signal(config, options),
            timeout=options.timeout,
            shm_size=options.shm_size,
            allow_unenforced=options.allow_unenforced,
            health=launch.make_health(config, options),
        )

    def _trusting_host(self, spec: ContainerSpec, image: Image) -> tuple[ContainerSpec, tuple[Mount, ...]]:
        """--host-ca: the variables, and the mounts, also where the image's distribution keeps what it trusts."""
        from sandbox.runtime import host_ca

        tree = self._store.tree(image.top)
        place = host_ca.deliver(self._root, host_ca.trusted(partial(tree.read, limit=_BUNDLE)), host_ca.added())
        kept = [path for path in host_ca.PLACES if (entry := tree.lookup(path)) and entry.is_file]
        mounts = (host_ca.mount(place), *(Mount("bind", path, str(place / "bundle.pem"), read_only=True) for path in kept))
        env = host_ca.with_variables(dict(spec.process.env))
        return replace(spec, process=replace(spec.process, env=tuple(env.items()))), mounts

    def _make_upper(self, directory: Path, image: Image) -> None:
        """The upper directory gives the container's / its mode and owner: the image's."""
        upper = directory / "upper"
        upper.mkdir()
        (directory / "work").mkdir(mode=0o700)
        root = self._store.tree(image.top).stat("/").stat
        os.chmod(upper, root.st_mode & 0o7777)
        if os.geteuid() == 0:
            os.chown(upper, root.st_uid, root.st_gid)

    def _mounts(self, image: Image, directory: Path, options: RunOptions, made: list[str]) -> tuple[Mount, ...]:
        """-v, --mount, --tmpfs, and an anonymous volume for each VOLUME of the image that nothing else covers, named in `made`."""
        long = [launch.parse_mount(text) for text in options.mount]
        requests = [launch.parse_volume(text) for text in options.volume] + [each for each in long if isinstance(each, VolumeRequest)]
        tmpfs = [launch.parse_tmpfs(text) for text in options.tmpfs] + [each for each in long if not isinstance(each, VolumeRequest)]
        targets = [*(request.target for request in requests), *(target for target, _ in tmpfs)]
        if twice := next((target for target in targets if targets.count(target) > 1), None):
            raise InvalidOption(f"{twice}: two mounts for one place")
        inherited = [mount for mount in self._mounts_of_others(options.volumes_from) if mount.target not in targets]
        targets += [mount.target for mount in inherited]
        requests += [VolumeRequest("named", "", path) for path in sorted(image.config.value.config.volumes or ()) if path not in targets]
        return (
            *inherited,
            *(self._bind(request, number, image, directory, options, made) for number, request in enumerate(requests)),
            *(Mount("tmpfs", target, options=given) for target, given in tmpfs),
        )

    def _mounts_of_others(self, names: Sequence[str]) -> list[Mount]:
        """--volumes-from NAME[:ro]: its host directories and volumes, at the same places; of two for one the later. ContainerNotFound."""
        found: dict[str, Mount] = {}
        for text in names:
            name, _, mode = text.partition(":")
            if mode not in ("", "ro", "rw"):
                raise InvalidOption(f"--volumes-from {text}: not of the form container[:ro|:rw]")
            other = self._records.find(name)
            own = f"{self._records.directory(other.id)}/"
            for mount in other.spec.mounts:
                if mount.kind != "bind" or Path(mount.source).is_relative_to(self._root / "host-ca"):
                    continue
                if mount.source.startswith(own):
                    hint = f"give it a name: -v NAME:{mount.target}"
                    raise InvalidOption(f"--volumes-from {name}: its volume at {mount.target} goes with it (--rm)", hint=hint)
                found[mount.target] = replace(mount, read_only=mount.read_only or mode == "ro")
        return list(found.values())

    def _bind(self, request: VolumeRequest, number: int, image: Image, directory: Path, options: RunOptions, made: list[str]) -> Mount:
        if request.kind == "bind":
            source = self._host_directory(request)
            check_propagation(request.propagation, source, userns=options.userns)
        else:
            source = self._volume(request, number, image, directory, options)
            made += [] if request.source else [str(source)]
        spreads = () if request.propagation == "rprivate" else (request.propagation,)
        return Mount("bind", request.target, str(source), read_only=request.read_only, options=spreads)

    def _host_directory(self, request: VolumeRequest) -> Path:
        source = Path(request.source).expanduser().absolute()
        if not source.exists():
            if not request.make:
                raise InvalidOption(f"--mount: {source} does not exist", hint="-v would make it")
            source.mkdir(parents=True)  # as docker does
        return source

    def _volume(self, request: VolumeRequest, number: int, image: Image, directory: Path, options: RunOptions) -> Path:
        """A new volume begins with what the image has at its place."""
        from sandbox import trees

        fill = partial(trees.populate, self._store.tree(image.top), request.target) if request.copy else None
        if request.source or not options.rm:
            return self._volumes.take(request.source or None, fill)
        own = directory / "volumes" / str(number)  # goes with its container
        own.mkdir(mode=0o755, parents=True)
        if fill is not None:
            fill(own)
        return own


def _read_file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise InvalidOption(f"{path}: {err}") from err
