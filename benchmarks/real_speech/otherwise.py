"""Prompts whose recording words it otherwise than the listed text.

Found by reading what Whisper base heard beside every text. All are differences in wording: what
the model merely misheard is not listed here.
"""

SAYS_OTHERWISE = {
    # Where the text has a digit after "marque" she says "el número" before it.
    "allison-es": """
        conf-adminmenu conf-usermenu demo-instruct dictate/play_help dictate/record_help dir-instr
        followme/options letters/exclaimation-point priv-callee-options screen-callee-options
        vm-advopts vm-calldiffnum vm-delete vm-forward vm-forwardoptions vm-instructions
        vm-leavemsg vm-msginstruct vm-next vm-nomore vm-onefor vm-options vm-opts vm-prev
        vm-record-prepend vm-repeat vm-review vm-saveoper vm-tempgreeting vm-tempgreeting2
        vm-tocallback vm-tocallnum vm-toenternumber vm-toforward vm-tohearenv vm-tomakecall
        vm-toreply vm-torerecord vm-undelete
    """,
    "june": """
        feature-not-avail-line if-correct-press please-try-call-later sorry-youre-having-problems
        speed-dial-empty vm-marked-urgent vm-rec-name vm-review-urgent vm-tomakecall
    """,
    "carlo": """
        conf-adminmenu-18 conf-adminmenu-menu8 conf-muted conf-placeintoconf confbridge-mute-in
        confbridge-mute-out confbridge-only-one dir-instr please-try-call-later queue-thereare
        screen-callee-options vm-rec-unv vm-tempgreetactive vm-then-pound vm-tohearenv
    """,
    # The listed texts are carlo's.
    "menardi": """
        agent-alreadyon agent-newlocation agent-pass agent-user conf-adminmenu conf-adminmenu-162
        conf-getchannel conf-getconfno conf-getpin conf-hasjoin conf-lockednow conf-muted
        conf-noempty conf-now-recording conf-now-unmuted conf-onlyone conf-onlyperson
        conf-placeintoconf conf-usermenu conf-usermenu-162 conf-userswilljoin conf-userwilljoin
        conf-waitforleader confbridge-mute-in confbridge-mute-out confbridge-only-one
        demo-congrats dictate/playback_mode dictate/record_help dictate/record_mode dir-instr
        letters/ascii36 queue-holdtime queue-periodic-announce queue-quantity1 queue-thereare
        vm-calldiffnum vm-from-phonenumber vm-incorrect vm-incorrect-mailbox vm-instructions
        vm-invalid-password vm-invalidpassword vm-isonphone vm-newuser vm-next vm-nobox
        vm-passchanged vm-rec-busy vm-rec-name vm-rec-unv vm-record-prepend vm-repeat
        vm-review-urgent vm-sorry vm-tempgreeting2 vm-then-pound vm-tmpexists vm-tooshort
        vm-torerecord
    """,
}
