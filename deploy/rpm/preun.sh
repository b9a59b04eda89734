# Services whose program is taken away are stopped. An upgrade (1) leaves them as they are: when they are started again is
# for the operator to say.
if [ "$1" = 0 ] && [ -d /run/systemd/system ]; then
    systemctl disable --now segvault-agent.service segvault-coordinator.service || :
fi
