# The user that the services run as; files of the package belong to its group, so it comes first.
getent group segvault >/dev/null || groupadd --system segvault
getent passwd segvault >/dev/null || useradd --system --gid segvault --comment Segvault \
    --home-dir /var/lib/segvault --no-create-home --shell /usr/sbin/nologin segvault
