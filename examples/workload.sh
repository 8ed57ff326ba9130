# What the recording shows: a listing, a file that is there and one that is not, Python, data, and sleep.
ls /usr/bin >/dev/null
cat /etc/hostname /nowhere >/dev/null 2>&1
sleep 0.6
python3 -S -c 'print(sum(range(1000)))' >/dev/null
dd if=/dev/zero of=/dev/null bs=4096 count=200 status=none
sleep 0.6
head -c 100000 /dev/urandom | wc -c >/dev/null
