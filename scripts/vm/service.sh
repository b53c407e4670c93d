# Part of the guest's first process: gives its place to systemd, which runs the job as a service beside the least that a machine has.
#
# The job's status ends the machine, as without systemd. A job that has the machine stopped (`systemctl poweroff`, and does not end before) is judged
# by the script it has left as at-shutdown in the shared folder: that runs when everything is stopped, and its status counts.
# The guest is a machine, whatever the root that it was lent is elsewhere.
rm -f /.dockerenv /run/.containerenv
unset container
units=/etc/systemd/system
mkdir -p $units/ashlar-vm.target.wants /usr/lib/systemd/system-shutdown
# What this machine has beyond that would only take time.
for unit in $(cd /etc/systemd/system && find . -path '*.wants/*' -printf '%f\n' | sort -u) systemd-hwdb-update.service systemd-firstboot.service \
    systemd-journal-catalog-update.service systemd-machine-id-commit.service systemd-sysusers.service systemd-update-done.service ldconfig.service \
    systemd-timesyncd.service systemd-networkd.service systemd-resolved.service dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount \
    sys-kernel-tracing.mount proc-sys-fs-binfmt_misc.automount systemd-binfmt.service systemd-vconsole-setup.service keyboard-setup.service \
    console-setup.service systemd-ask-password-wall.path systemd-ask-password-console.path; do
    [ "$unit" = remote-fs.target ] || ln -sf /dev/null $units/"$unit"
done
rm -rf $units/*.target.wants/*
cat >$units/ashlar-vm.target <<UNIT
[Unit]
Requires=basic.target
Wants=multi-user.target
After=basic.target
UNIT
ln -sf /dev/null $units/getty.target
mkdir -p $units/multi-user.target.wants
ln -sf /lib/systemd/system/remote-fs.target $units/multi-user.target.wants/remote-fs.target
cat >$units/ashlar-vm.service <<UNIT
[Unit]
After=basic.target systemd-udev-settle.service
[Service]
Type=oneshot
ExecStart=/run/ashlar-vm/run-job
StandardInput=null
StandardOutput=tty
StandardError=tty
TTYPath=/dev/hvc0
TimeoutStartSec=infinity
UNIT
ln -s $units/ashlar-vm.service $units/ashlar-vm.target.wants/ashlar-vm.service
cat >/run/ashlar-vm/end <<SCRIPT
echo "vm: the job ended with status \$1 after \$(cut -d ' ' -f 1 /proc/uptime) s" >/dev/console
echo \$1 >$shared/status.new && mv $shared/status.new $shared/status
sync -f $shared
sleep 1
printf '\\020' | dd of=/dev/port bs=1 seek=$((0xf4)) conv=notrunc 2>/dev/null
SCRIPT
cat >/run/ashlar-vm/run-job <<SCRIPT
#!/bin/bash
export ASHLAR_VM_DIR=$shared HOME=/root LANG=C.UTF-8 TERM=linux PATH=$PATH
stty -F /dev/hvc0 raw -echo
udevadm settle --timeout=20
echo "vm: ready after \$(cut -d ' ' -f 1 /proc/uptime) s" >/dev/console
bash $shared/job </dev/null >/dev/hvc0 2>&1
. /run/ashlar-vm/end \$?
SCRIPT
cat >/usr/lib/systemd/system-shutdown/ashlar-vm <<SCRIPT
#!/bin/bash
mountpoint -q $shared || mount -t 9p -o trans=virtio,version=9p2000.L,cache=none,msize=512000 shared $shared
export ASHLAR_VM_DIR=$shared
bash $shared/at-shutdown >/dev/hvc0 2>&1
. /run/ashlar-vm/end \$?
SCRIPT
chmod 755 /run/ashlar-vm/run-job /usr/lib/systemd/system-shutdown/ashlar-vm
umount /dev/shm
echo "vm: systemd after $(cut -d ' ' -f 1 /proc/uptime) s" >/dev/console
exec /lib/systemd/systemd --unit=ashlar-vm.target
