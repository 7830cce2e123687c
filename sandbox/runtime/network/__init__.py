"""Networks of one engine: bridges, addresses, rules, names. The host side; what a start itself needs of netlink is in runtime/init."""
